//! Which node of a Redis Cluster has which keys.

use std::sync::Arc;

use deadpool_redis::redis::Value;

use crate::cache::{dial::Address, node::CacheNode};

const SLOTS: u16 = 16_384;
/// The table of CRC-16/XMODEM, by which Redis Cluster assigns keys to slots.
const CRC: [u16; 256] = crc_table();

const fn crc_table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

/// The slot of a key: that of the part within the first braces, if there is one.
pub(super) fn slot_of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    let tag = tag.map_or(key, |(tag, _)| if tag.is_empty() { key } else { tag });
    let crc = tag
        .bytes()
        .fold(0, |crc: u16, byte| (crc << 8) ^ CRC[usize::from((crc >> 8) ^ u16::from(byte))]);
    crc % SLOTS
}

/// A key below a prefix, in one of these slots, that the worker does not use.
pub(in crate::cache) fn free_key(prefix: &str, range: &SlotRange) -> String {
    let mut number = 0_u32;
    loop {
        let key = format!("{prefix}:{{doctor-{number}}}:{}", uuid::Uuid::new_v4().simple());
        if (range.first..=range.last).contains(&slot_of(&key)) {
            return key;
        }
        number += 1;
    }
}

/// The owner of each slot.
#[derive(Clone)]
pub(super) struct SlotMap {
    /// By slot, the place of the owner in `nodes`.
    owners: Vec<u16>,
    /// The first one stands for the owner of slots that no answer has named yet.
    nodes: Vec<Arc<CacheNode>>,
}

impl SlotMap {
    /// The map before the first answer.
    pub(super) fn unknown(placeholder: Arc<CacheNode>) -> Self {
        Self { owners: vec![0; SLOTS.into()], nodes: vec![placeholder] }
    }

    pub(super) fn owner(&self, slot: u16) -> &Arc<CacheNode> {
        &self.nodes[usize::from(self.owners[usize::from(slot)])]
    }

    /// The nodes that own slots.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Arc<CacheNode>> {
        self.nodes.iter().skip(1)
    }

    /// Whether an answer has named the owner of any slot.
    pub(super) fn is_known(&self) -> bool {
        self.nodes.len() > 1
    }

    /// This map with another owner of these slots.
    pub(super) fn assign(&mut self, slots: impl Iterator<Item = u16>, node: &Arc<CacheNode>) {
        let known = self.nodes.iter().position(|known| Arc::ptr_eq(known, node));
        let place = known.unwrap_or_else(|| {
            self.nodes.push(Arc::clone(node));
            self.nodes.len() - 1
        });
        // More nodes than slots are impossible.
        let place = u16::try_from(place).unwrap_or(0);
        for slot in slots {
            self.owners[usize::from(slot % SLOTS)] = place;
        }
    }

    /// Forgets the nodes that own no slot any more.
    pub(super) fn without_idle_nodes(&self) -> Self {
        let mut map = Self::unknown(Arc::clone(&self.nodes[0]));
        for slot in 0..SLOTS {
            if self.owners[usize::from(slot)] != 0 {
                map.assign(std::iter::once(slot), self.owner(slot));
            }
        }
        map
    }
}

/// A range of slots with its owner, as `CLUSTER SLOTS` answers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SlotRange {
    pub(crate) first: u16,
    pub(crate) last: u16,
    pub(crate) primary: Address,
    pub(crate) replicas: Vec<Address>,
}

/// Reads the answer of `CLUSTER SLOTS`. `from`: the node that answered.
pub(super) fn parse_slots(answer: &Value, from: &Address) -> Vec<SlotRange> {
    let Value::Array(ranges) = answer else { return Vec::new() };
    ranges.iter().filter_map(|range| parse_range(range, from)).collect()
}

fn parse_range(range: &Value, from: &Address) -> Option<SlotRange> {
    let Value::Array(parts) = range else { return None };
    let [Value::Int(first), Value::Int(last), primary, replicas @ ..] = &parts[..] else {
        return None;
    };
    let slot = |number: &i64| u16::try_from(*number).ok().filter(|slot| *slot < SLOTS);
    let (first, last) = (slot(first)?, slot(last)?);
    (first <= last).then_some(())?;
    Some(SlotRange {
        first,
        last,
        primary: parse_node(primary, from)?,
        replicas: replicas.iter().filter_map(|node| parse_node(node, from)).collect(),
    })
}

fn parse_node(node: &Value, from: &Address) -> Option<Address> {
    let Value::Array(parts) = node else { return None };
    let [host, Value::Int(port), ..] = &parts[..] else { return None };
    // An empty or missing host is that of the node that answers; `?` is unknown.
    let host = match host {
        Value::Nil => "",
        Value::BulkString(host) => std::str::from_utf8(host).ok()?,
        Value::SimpleString(host) => host,
        _ => return None,
    };
    let host = if host.is_empty() { &from.host } else { host };
    let port = u16::try_from(*port).ok()?;
    (host != "?").then(|| Address { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // As CLUSTER KEYSLOT of Redis 7.0.15 answers.
        for (key, slot) in [
            ("123456789", 12739),
            ("foo", 12182),
            ("{foo}bar", 12182),
            ("a{foo}b{c}", 12182),
            ("foo{}{bar}", 8363),
            ("", 0),
        ] {
            assert_eq!(slot_of(key), slot, "{key}");
        }
    }

    #[test]
    fn missing_hosts_are_the_answering_nodes_own_and_unknown_ones_are_left_out() {
        let from = Address { host: "h".to_owned(), port: 1 };
        let node = |host: &str, port| {
            Value::Array(vec![Value::BulkString(host.as_bytes().to_vec()), Value::Int(port)])
        };
        let answer = Value::Array(vec![
            Value::Array(vec![
                Value::Int(0),
                Value::Int(5),
                node("", 7),
                node("?", 8),
                node("b", 9),
            ]),
            Value::Array(vec![Value::Int(6), Value::Int(9), node("?", 7)]),
            // No range.
            Value::Array(vec![Value::Int(9), Value::Int(6), node("b", 7)]),
            Value::Int(3),
        ]);
        let address = |host: &str, port| Address { host: host.to_owned(), port };
        let only = SlotRange {
            first: 0,
            last: 5,
            primary: address("h", 7),
            replicas: vec![address("b", 9)],
        };
        assert_eq!(parse_slots(&answer, &from), [only]);
    }
}
