"""Commands that export and measure, one module each."""
