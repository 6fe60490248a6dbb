from tests.support import counts_at_hand, quick

__all__ = ["counts_at_hand", "quick"]
