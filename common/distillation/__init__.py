"""A student learns from a teacher: losses, the teacher online or cached, and on-policy distillation.

May import estimate, training and what they may import."""

from tunebook.common.distillation.student import UNHEARD, Teacher, isolate, locate, loss, prepare, teacher

__all__ = ["UNHEARD", "Teacher", "isolate", "locate", "loss", "prepare", "teacher"]
