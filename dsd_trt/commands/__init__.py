"""Commands of the runtime, one a module, imported when they are called."""
