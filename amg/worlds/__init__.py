"""Models with their training sets, and the truth about them where it is known: closed-form worlds and the lab."""
