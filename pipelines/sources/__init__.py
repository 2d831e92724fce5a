"""One module a source: raw files of one form -> Raw."""
