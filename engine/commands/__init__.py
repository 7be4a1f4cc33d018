"""The sub-commands of `polarax`, one a module: its flags, and what it does with them."""
