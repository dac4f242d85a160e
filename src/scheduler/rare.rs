//! What most have no use for most of the time.

use std::ops::{Deref, DerefMut};

/// Boxed while there is anything to it. At rest it takes a pointer's room and reads as what it is then; it is made when
/// it is first written to. Of a million queues most rest.
pub(super) struct Rare<T>(Option<Box<T>>);

/// What may be at rest.
pub(super) trait AtRest: Sized + 'static {
    const NEW: Self;
    /// A [`NEW`](Self::NEW) one, to be read.
    const AT_REST: &'static Self;

    /// It is as a new one is, or means the same.
    fn is_at_rest(&self) -> bool;
}

impl<T> Default for Rare<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Rare<T> {
    pub(super) const fn new() -> Self {
        Self(None)
    }
}

impl<T: AtRest> Rare<T> {
    /// Changes it unless it is at rest, where the change would change nothing. Gives its room back if it is then.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut T)) {
        if let Some(it) = &mut self.0 {
            change(it);
            self.tidy();
        }
    }

    /// Gives its room back if it is at rest.
    pub(super) fn tidy(&mut self) {
        if self.0.as_ref().is_some_and(|it| it.is_at_rest()) {
            self.0 = None;
        }
    }

    /// As it is, and at rest from here on.
    pub(super) fn take(&mut self) -> T {
        self.0.take().map_or(T::NEW, |it| *it)
    }
}

impl<T: AtRest> Deref for Rare<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or(T::AT_REST)
    }
}

impl<T: AtRest> DerefMut for Rare<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_with(|| Box::new(T::NEW))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Count(u32);

    impl AtRest for Count {
        const NEW: Self = Self(0);
        const AT_REST: &'static Self = &Self::NEW;

        fn is_at_rest(&self) -> bool {
            self.0 == 0
        }
    }

    #[test]
    fn it_takes_room_while_there_is_anything_to_it() {
        let mut rare = Rare::<Count>::default();
        assert_eq!((rare.0.is_some(), rare.deref().0), (false, 0));
        rare.deref_mut().0 = 3;
        rare.tidy();
        assert_eq!((rare.0.is_some(), rare.deref().0), (true, 3));
        rare.deref_mut().0 = 0;
        rare.tidy();
        assert!(rare.0.is_none());
        rare.deref_mut().0 = 5;
        assert_eq!((rare.take().0, rare.0.is_some()), (5, false));
    }
}
