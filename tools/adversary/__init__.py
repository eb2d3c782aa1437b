"""The adversarial round: odd healthy images and damaged ones, judged by the kernel's word."""
