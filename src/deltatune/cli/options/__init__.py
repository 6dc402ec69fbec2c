"""Options of the commands, in groups: what each is called, its help, and the objects made of its values."""
