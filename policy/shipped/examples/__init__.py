"""Policies to copy beside the shipped ones if you want them. Nothing in this folder is ever loaded from here."""
