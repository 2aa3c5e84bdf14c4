"""What an exported file meets in orbit: bit flips, the proof that it is what was sent, updates over a narrow uplink."""
