"""What the operating system says about ports, and what it can be made to enforce. Decides nothing about requests."""
