"""Merges several models of one architecture, tensor by tensor."""
