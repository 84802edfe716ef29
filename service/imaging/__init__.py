"""Bytes to tensor. Knows no model, no queue, no HTTP."""
