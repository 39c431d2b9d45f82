"""The wire: HPKE, Binary HTTP, Oblivious HTTP, padding, tensors, frames. Pure functions and values, no I/O."""
