"""What several tests share: cases and the rule they are held to, models, the emulator's builds, other processes."""
