"""Compiling for GPUs that are not there, and reading what such a program does."""
