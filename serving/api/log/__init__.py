"""What is known of one request and its response, and the file of `--log`."""
