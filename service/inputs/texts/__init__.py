"""Texts and problems: documents and rows of files."""
