"""How few parameters a task needs: the search for the intrinsic dimension."""
