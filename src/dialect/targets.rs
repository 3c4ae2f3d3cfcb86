//! What the steps of a route need of an event, checked, and the rooms and users that its templates stand for: the same for a shard that
//! takes the steps as for who tries them out.

use super::native::{Code, Refusal, name_fault};
use crate::routes::Steps;
use crate::routes::template::{Fault, Name, Paths, Values};
use smallvec::SmallVec;
use std::borrow::Cow;

/// How many rooms an event may name, and how long the name of each may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// As many as a connection may be in.
    pub rooms_max: usize,
    /// In bytes.
    pub room_name_bytes_max: usize,
}

/// Finds what the templates of a route look at in the arguments of an event, which it has to be for.
///
/// # Errors
/// When the event is refused before any step is taken.
pub fn find<'a>(
    steps: &Steps,
    args: &'a str,
    is_user: impl FnOnce() -> bool,
) -> Result<SmallVec<[Option<&'a str>; 8]>, Refusal<'static>> {
    if let Some(reason) = &steps.refuse {
        return Err(Refusal::new(Code::Forbidden, reason.clone()));
    }
    if steps.needs.user && !is_user() {
        return Err(Refusal::new(Code::Forbidden, "only users may do this"));
    }
    let found = steps.paths.find(args);
    steps.check(&found).map_err(|Fault(message)| Refusal::new(Code::BadMessage, message))?;
    Ok(found)
}

/// Adds the names that a template stands for to `names`. One that is the same for every event is the
/// configuration's own, and stands as it is.
///
/// # Errors
/// When a place can't be filled, there are too many names, or one of them is none of a room.
pub fn fill<'n>(
    name: &'n Name,
    values: &Values<'_>,
    paths: &Paths,
    bounds: Bounds,
    names: &mut SmallVec<[Cow<'n, str>; 4]>,
) -> Result<(), Refusal<'static>> {
    let before = names.len();
    let bad_room = |Fault(message)| Refusal::new(Code::BadRoom, message);
    name.fill(values, paths, bounds.rooms_max, names).map_err(bad_room)?;
    if name.is_static() {
        return Ok(());
    }
    match names[before..].iter().find_map(|name| name_fault(name, bounds.room_name_bytes_max)) {
        Some(fault) => Err(Refusal::new(Code::BadRoom, format!("a room name {fault}"))),
        None => Ok(()),
    }
}
