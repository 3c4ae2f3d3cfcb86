//! `/rooms/ROOM`: how many are in a room, here and in other processes.

use super::{Control, failure};
use crate::bus::directory::room_key;
use crate::bus::presence::{Asker, Attendance, Question, TooManyQuestions};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::sync::Arc;
use tokio::sync::oneshot;

/// The namespace that the room is in.
#[derive(Debug, Deserialize)]
pub(super) struct Of {
    namespace: Option<String>,
}

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

pub(super) async fn room(
    State(control): State<Arc<Control>>,
    Path(room): Path<String>,
    Query(Of { namespace }): Query<Of>,
) -> Response {
    let namespace = namespace.unwrap_or_else(|| "/".to_owned());
    // The zero byte of the directory's names is one.
    if !namespace.starts_with('/') || [&room, &namespace].iter().any(|name| name.contains(char::is_control)) {
        return failure(StatusCode::BAD_REQUEST, "bad_room", "no room or no namespace can be called so");
    }
    let question = Question { room: room_key(&namespace, &room).as_ref().into(), who: false };
    match control.attendance(&question).await {
        Ok(attendance) => {
            let age_ms = attendance.age_ms(control.clock.now());
            let json = format!(r#"{{{},"age_ms":{age_ms}}}"#, attendance.fields());
            ([(header::CONTENT_TYPE, "application/json")], json).into_response()
        }
        Err(TooManyQuestions) => {
            failure(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "too many questions wait for answers")
        }
    }
}
