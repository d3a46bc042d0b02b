"""Runs where a person looks: on the command line, in a notebook. How things look: text, pages, charts, pictures; imports `weights` and below."""
