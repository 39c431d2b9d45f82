"""One module for each step, oldest first. What was released is never changed."""
