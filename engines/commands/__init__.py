"""Commands that build plans and repositories, one module each."""
