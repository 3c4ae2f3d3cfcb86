//! `/rooms/ROOM`: how many are in a room, here and in other processes.

use super::Control;
use super::api::request::{Query, path};
use super::refusal::Refusal;
use crate::bus::directory::room_key;
use crate::bus::presence::{Asker, Attendance, Question, TooManyQuestions};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use tokio::sync::oneshot;

impl Control {
    /// Asks who is in a room, everywhere, and waits for the answer: as long as other processes may take.
    ///
    /// # Errors
    /// [`TooManyQuestions`] when as many as may be are under way.
    pub async fn attendance(&self, question: &Question) -> Result<Arc<Attendance>, TooManyQuestions> {
        let (tell, told) = oneshot::channel();
        let call = move |attendance| {
            // Who asked may have gone.
            tell.send(attendance).ok();
        };
        self.bus.ask_presence(question, Asker::Call(Box::new(call)), self.clock.now())?;
        // The call is made unless the process ends.
        told.await.map_err(|_| TooManyQuestions)
    }
}

/// `GET /rooms/{room}`.
pub(super) async fn room(
    State(control): State<Arc<Control>>,
    room: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Refusal> {
    let room = path(room)?;
    let mut query = Query::read(&uri)?;
    let namespace = query.namespace()?;
    query.end()?;
    // The zero byte of the directory's names is one.
    if room.contains(char::is_control) {
        return Err(Refusal::wrong("a room name must not have control characters"));
    }
    let question = Question { room: room_key(&namespace, &room).as_ref().into(), who: false };
    let asked = control.attendance(&question).await;
    let attendance =
        asked.map_err(|TooManyQuestions| Refusal::busy("too many questions wait for answers"))?;
    let age_ms = attendance.age_ms(control.clock.now());
    let json = format!(r#"{{{},"age_ms":{age_ms}}}"#, attendance.fields());
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}
