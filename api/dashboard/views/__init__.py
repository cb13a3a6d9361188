"""What each page shows: plain values, built from what the services of the domain return."""
