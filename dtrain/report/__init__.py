"""Runs where a person looks back at runs; imports `control` and below. Reports, comparisons and the audit of samples."""
