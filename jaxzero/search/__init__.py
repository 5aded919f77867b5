"""Thinking: tree search and sampling behind one interface, with every forward token counted."""
