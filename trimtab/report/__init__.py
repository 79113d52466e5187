"""What a person sees: the page, the terminal, the evidence behind both."""
