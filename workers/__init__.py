"""Worker programs: what runs inside worker processes. They import fdpool; fdpool never imports them."""
