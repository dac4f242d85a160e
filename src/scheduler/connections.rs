//! All connections.

use super::session::Connection;

/// A connection, from the wish for it to its end. They are in the order in which they were wished for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnectionId {
    number: u64,
    /// Where it lies.
    place: u32,
}

/// They are found at their places, and one that is gone is never mistaken for who has its place now.
#[derive(Default)]
pub(super) struct Connections {
    places: Vec<Option<(ConnectionId, Connection)>>,
    free: Vec<u32>,
    last: u64,
}

impl Connections {
    pub(super) fn insert(&mut self, connection: Connection) -> ConnectionId {
        self.last += 1;
        let next = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        let id = ConnectionId { number: self.last, place: self.free.pop().unwrap_or(next) };
        match self.places.get_mut(id.place as usize) {
            Some(place) => *place = Some((id, connection)),
            None => self.places.push(Some((id, connection))),
        }
        id
    }

    pub(super) fn get(&self, id: ConnectionId) -> Option<&Connection> {
        let (own, connection) = self.places.get(id.place as usize)?.as_ref()?;
        (*own == id).then_some(connection)
    }

    pub(super) fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let (own, connection) = self.places.get_mut(id.place as usize)?.as_mut()?;
        (*own == id).then_some(connection)
    }

    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<Connection> {
        let place = self.places.get_mut(id.place as usize)?;
        let (_, connection) = place.take_if(|(own, _)| *own == id)?;
        self.free.push(id.place);
        Some(connection)
    }

    /// By their places: in the same order after the same calls.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ConnectionId, &Connection)> {
        self.places.iter().flatten().map(|(id, connection)| (*id, connection))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.iter().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_gone_is_not_found_and_later_ones_come_later_in_order() {
        let mut all = Connections::default();
        let first = all.insert(Connection::for_tests());
        let second = all.insert(Connection::for_tests());
        assert!(all.remove(first).is_some() && all.remove(first).is_none());
        let third = all.insert(Connection::for_tests());
        assert_eq!(third.place, first.place);
        assert!(first < second && second < third);
        assert!(all.get(first).is_none() && all.get_mut(first).is_none() && all.remove(first).is_none());
        assert!(all.get(third).is_some() && all.get_mut(second).is_some());
        assert_eq!(all.iter().map(|(id, _)| id).collect::<Vec<_>>(), [third, second]);
    }
}
