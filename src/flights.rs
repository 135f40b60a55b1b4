//! Single-flight within the process: of several requests for the same person, one does the work and
//! the others share what comes of it. Works without Redis, and spares it when it is there.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

/// The flights under way, by key.
#[derive(Debug)]
pub struct Flights<T> {
    under_way: Arc<Mutex<UnderWay<T>>>,
}

type UnderWay<T> = HashMap<String, watch::Receiver<Option<T>>>;

/// What boarding made of us.
#[derive(Debug)]
pub enum Boarded<T> {
    /// Nobody is at it: do the work, then land.
    Pilot(Pilot<T>),
    /// Somebody is at it: wait for the landing.
    Passenger(Passenger<T>),
}

/// Whoever does the work. Dropped without landing, say by a panic, it sets the passengers free.
#[derive(Debug)]
pub struct Pilot<T> {
    under_way: Arc<Mutex<UnderWay<T>>>,
    key: String,
    landing: watch::Sender<Option<T>>,
}

/// Whoever waits.
#[derive(Debug)]
pub struct Passenger<T> {
    landing: watch::Receiver<Option<T>>,
}

impl<T: Clone> Flights<T> {
    /// No flight under way.
    pub fn new() -> Self {
        Self { under_way: Arc::default() }
    }

    /// Joins the flight under way for a key, or begins one.
    pub fn board(&self, key: &str) -> Boarded<T> {
        let mut under_way = lock(&self.under_way);
        if let Some(landing) = under_way.get(key) {
            return Boarded::Passenger(Passenger { landing: landing.clone() });
        }
        let (landing, waiting) = watch::channel(None);
        under_way.insert(key.to_owned(), waiting);
        let under_way = Arc::clone(&self.under_way);
        Boarded::Pilot(Pilot { under_way, key: key.to_owned(), landing })
    }
}

impl<T: Clone> Default for Flights<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Pilot<T> {
    /// Shares what came of it with all passengers.
    pub fn land(self, result: T) {
        self.landing.send_replace(Some(result));
    }
}

impl<T> Drop for Pilot<T> {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.key);
    }
}

impl<T: Clone> Passenger<T> {
    /// What came of it; `None` where the pilot went without landing.
    pub async fn landing(mut self) -> Option<T> {
        let landed = self.landing.wait_for(Option::is_some).await.ok()?;
        landed.clone()
    }
}

/// The map is whole after every step, so a panic elsewhere does not spoil it.
fn lock<T>(under_way: &Mutex<UnderWay<T>>) -> MutexGuard<'_, UnderWay<T>> {
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pilot(flights: &Flights<u8>, key: &str) -> Pilot<u8> {
        match flights.board(key) {
            Boarded::Pilot(pilot) => pilot,
            Boarded::Passenger(_) => panic!("somebody flies already"),
        }
    }

    fn passenger(flights: &Flights<u8>, key: &str) -> Passenger<u8> {
        match flights.board(key) {
            Boarded::Passenger(passenger) => passenger,
            Boarded::Pilot(_) => panic!("nobody flies"),
        }
    }

    #[tokio::test]
    async fn passengers_share_the_landing_and_the_next_flies_again() {
        let flights = Flights::new();
        let first = pilot(&flights, "a");
        let others = [passenger(&flights, "a"), passenger(&flights, "a")];
        let _other_key = pilot(&flights, "b");
        first.land(7);
        for other in others {
            assert_eq!(other.landing().await, Some(7));
        }
        let _next = pilot(&flights, "a");
    }

    #[tokio::test]
    async fn a_pilot_who_never_lands_sets_the_passengers_free() {
        let flights = Flights::new();
        let first = pilot(&flights, "a");
        let other = passenger(&flights, "a");
        drop(first);
        assert_eq!(other.landing().await, None);
        let _next = pilot(&flights, "a");
    }
}
