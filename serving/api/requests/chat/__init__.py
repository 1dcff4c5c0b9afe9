"""What a chat request asks of the chat template: messages, variables, and how the prompt ends."""
