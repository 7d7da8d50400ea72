"""The run folder: names on disk, records, files that are written whole or not at all, and reading them back."""
