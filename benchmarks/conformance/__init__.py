"""Is a method implemented correctly? `check` measures it on small random backbones."""
