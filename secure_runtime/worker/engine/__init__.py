"""From opened requests to answers: parse, batch, run, apply obligations."""
