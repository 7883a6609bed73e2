"""The answers of the sizing commands: rows, fields and documents. The commands and `llmbench.api` share them."""
