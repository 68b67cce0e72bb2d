"""What a run shows and leaves behind: tables, and one self-contained HTML page."""
