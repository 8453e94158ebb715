"""What a runtime can run in integers and which placement makes it fast, as tables."""
