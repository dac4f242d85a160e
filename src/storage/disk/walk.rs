//! The way through a tree of a damaged metadata file, and which keys each page of it may have.

use std::cmp::Ordering;
use std::rc::Rc;

use crate::storage::rows::Result;

use super::node::{Branch, Child, Leaf, Node, Widths};
use super::salvage::Salvage;

/// No tree is deeper.
const DEEPEST: usize = 64;

/// How a table's keys compare.
pub(super) type Compare = fn(&[u8], &[u8]) -> Ordering;

/// The keys that a sound page has below one of its children. At first: all.
#[derive(Clone, Debug, Default)]
pub(super) struct Span {
    /// They are greater.
    above: Option<Vec<u8>>,
    /// They are no greater.
    up_to: Option<Vec<u8>>,
}

impl Span {
    pub(super) fn holds(&self, key: &[u8], compare: Compare) -> bool {
        self.above.as_deref().is_none_or(|above| compare(key, above).is_gt()) && !self.is_before(key, compare)
    }

    pub(super) fn is_before(&self, key: &[u8], compare: Compare) -> bool {
        self.up_to.as_deref().is_some_and(|up_to| compare(key, up_to).is_gt())
    }
}

/// A page on the way through a tree.
pub(super) enum Met {
    /// A branch that is as it was written.
    Branch(u64),
    /// A leaf that is as it was written.
    Leaf(u64, Leaf),
    /// It is damaged, or another page: some or all of what it had is not found by it. With what it reads as if that is a leaf.
    Damaged(u64, Rc<Span>, Option<Leaf>),
    /// A leaf that the damaged page that was met last leads to. It is as that page says, but that may be of another time.
    Astray(u64),
}

/// Where to go next.
struct Next {
    child: Child,
    depth: usize,
    span: Rc<Span>,
    /// By sound pages alone.
    is_led_to: bool,
}

impl Salvage {
    /// Hands out what a tree has, in order.
    pub(super) fn walk(
        &self,
        root: Child,
        widths: Widths,
        each: &mut dyn FnMut(Met) -> Result<()>,
    ) -> Result<()> {
        let mut next = vec![Next { child: root, depth: 0, span: Rc::default(), is_led_to: true }];
        while let Some(Next { child, depth, span, is_led_to }) = next.pop() {
            let page = child.page;
            let read = if depth > DEEPEST { None } else { self.page(page, widths)? };
            match read.and_then(|octets| Node::parse(octets, widths, Some(child))) {
                Some((Node::Leaf(leaf), true)) if is_led_to => each(Met::Leaf(page, leaf))?,
                Some((Node::Leaf(_), true)) => each(Met::Astray(page))?,
                Some((Node::Branch(branch), true)) => {
                    if is_led_to {
                        each(Met::Branch(page))?;
                    }
                    below(&branch, depth, &span, is_led_to, &mut next);
                }
                Some((Node::Branch(branch), false)) if is_led_to => {
                    each(Met::Damaged(page, span.clone(), None))?;
                    below(&branch, depth, &span, false, &mut next);
                }
                Some((Node::Leaf(leaf), false)) if is_led_to => {
                    each(Met::Damaged(page, span, Some(leaf)))?;
                }
                None if is_led_to => each(Met::Damaged(page, span, None))?,
                // Where a damaged branch leads may be what is damaged of it.
                _ => {}
            }
        }
        Ok(())
    }
}

fn below(branch: &Branch, depth: usize, span: &Rc<Span>, is_led_to: bool, next: &mut Vec<Next>) {
    for (child, above, up_to) in branch.children().rev() {
        let Some(child) = child else { continue };
        let span = match is_led_to {
            true => Rc::new(Span {
                above: above.or(span.above.as_deref()).map(<[u8]>::to_vec),
                up_to: up_to.or(span.up_to.as_deref()).map(<[u8]>::to_vec),
            }),
            // The keys of a damaged page say nothing.
            false => span.clone(),
        };
        next.push(Next { child, depth: depth + 1, span, is_led_to });
    }
}
