"""Pages, figures and loggers: everything that a person sees."""
