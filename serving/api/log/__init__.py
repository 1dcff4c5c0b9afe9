"""The record of one request and its response, and the file of `--log`."""
