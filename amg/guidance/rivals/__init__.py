"""Methods that AMG is compared with; one paper a file."""
