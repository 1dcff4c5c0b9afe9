"""Conversations in which the demo calls tools and answers in JSON: their data, and the evaluation of the expert."""
