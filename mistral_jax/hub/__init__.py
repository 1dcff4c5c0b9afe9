"""Where the files of a model come from: a folder, a single file, the Hugging Face Hub, or the bundled models. Nothing
is read here."""
