"""Parts of the Host: banks, routing, merging, save calls, and what it shows of itself."""
