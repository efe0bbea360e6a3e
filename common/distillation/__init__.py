"""A student learns from a teacher: losses, the teacher online or cached, and on-policy distillation.

May import estimate, training and what they may import."""

from tunebook.common.distillation.student import (
    UNUSED_FIELDS,
    Teacher,
    isolate_documents,
    load_teacher,
    loss,
    prepare,
    resolve_teacher,
)

__all__ = ["UNUSED_FIELDS", "Teacher", "isolate_documents", "load_teacher", "loss", "prepare", "resolve_teacher"]
