"""Closed questions: searches that fixed a constant. They ran at the commit of their record."""
