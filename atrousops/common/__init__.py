"""What every folder uses: errors, files that are whole or not there, their formats."""
