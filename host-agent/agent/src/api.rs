//! The gRPC API: turns calls into questions to the engine, and nothing else. `proto/agent.proto` documents it.

use std::path::Path;
use std::sync::Arc;

use lunar_core::DeviceType;
use lunar_core::opcodes::{Answerer, COMMANDS, CommandRow};
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::line::{EngineLine, Question, ToEngine};
use crate::refusals::Refusals;

/// The API's messages, its server and its client, as generated.
#[allow(missing_docs, clippy::all)]
pub mod wire {
    tonic::include_proto!("lunar.agent.v1");
}

use wire::agent_server::{Agent, AgentServer};

/// The socket where nothing else was asked for.
pub const SOCKET_DEFAULT: &str = "/run/lunar/agent.sock";

/// Name and version of this program.
pub(crate) const SOFTWARE: &str = concat!("lunar-agent ", env!("CARGO_PKG_VERSION"));

struct Api {
    epoch: u64,
    engine: EngineLine,
    refusals: Arc<Refusals>,
}

impl Api {
    async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Question,
    ) -> Result<T, Status> {
        let (answer, answered) = oneshot::channel();
        let gone = || Status::unavailable("the agent is stopping; try again when it runs");
        self.engine.send(ToEngine::Ask(question(answer))).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }
}

#[tonic::async_trait]
impl Agent for Api {
    async fn version(
        &self,
        _: Request<wire::VersionRequest>,
    ) -> Result<Response<wire::VersionReply>, Status> {
        let software = SOFTWARE.to_owned();
        Ok(Response::new(wire::VersionReply { software, epoch: self.epoch }))
    }

    async fn health(
        &self,
        _: Request<wire::HealthRequest>,
    ) -> Result<Response<wire::HealthReply>, Status> {
        Ok(Response::new(self.ask(Question::Health).await?))
    }

    async fn show(
        &self,
        _: Request<wire::ShowRequest>,
    ) -> Result<Response<wire::ShowReply>, Status> {
        let mut reply = *self.ask(Question::Show).await?;
        let (refused, last_refusal) = self.refusals.told();
        reply.control = Some(wire::ControlChannel { refused, last_refusal });
        Ok(Response::new(reply))
    }

    async fn opcodes(
        &self,
        _: Request<wire::OpcodesRequest>,
    ) -> Result<Response<wire::OpcodesReply>, Status> {
        Ok(Response::new(wire::OpcodesReply { opcodes: COMMANDS.iter().map(opcode).collect() }))
    }

    async fn resync_size(
        &self,
        request: Request<wire::ResyncSizeRequest>,
    ) -> Result<Response<wire::ResyncSizeReply>, Status> {
        let device = request.into_inner().device;
        let reply = self.ask(|answer| Question::ResyncSize(device, answer)).await?;
        reply.map(Response::new).map_err(Status::failed_precondition)
    }

    async fn change_medium(
        &self,
        request: Request<wire::ChangeMediumRequest>,
    ) -> Result<Response<wire::ChangeMediumReply>, Status> {
        let request = request.into_inner();
        let reply = self.ask(|answer| Question::ChangeMedium(request, answer)).await?;
        reply.map(Response::new).map_err(Status::failed_precondition)
    }

    async fn alua(
        &self,
        _: Request<wire::AluaRequest>,
    ) -> Result<Response<wire::AluaReply>, Status> {
        Ok(Response::new(self.ask(Question::Alua).await?))
    }

    async fn set_alua(
        &self,
        request: Request<wire::SetAluaRequest>,
    ) -> Result<Response<wire::SetAluaReply>, Status> {
        let request = request.into_inner();
        let reply = self.ask(|answer| Question::SetAlua(request, answer)).await?;
        reply.map(Response::new).map_err(Status::failed_precondition)
    }

    async fn reservations(
        &self,
        request: Request<wire::ReservationsRequest>,
    ) -> Result<Response<wire::ReservationsReply>, Status> {
        let device = request.into_inner().device;
        let reply = self.ask(|answer| Question::Reservations(device, answer)).await?;
        reply.map(Response::new).map_err(Status::failed_precondition)
    }

    async fn change_reservations(
        &self,
        request: Request<wire::ChangeReservationsRequest>,
    ) -> Result<Response<wire::ReservationsReply>, Status> {
        let request = request.into_inner();
        let reply = self.ask(|answer| Question::ChangeReservations(request, answer)).await?;
        reply.map(Response::new).map_err(Status::failed_precondition)
    }
}

fn opcode(row: &CommandRow) -> wire::Opcode {
    let device_type = |device_type: &DeviceType| match device_type {
        DeviceType::Disk => "disk".to_owned(),
        DeviceType::CdDvd => "CD/DVD".to_owned(),
        DeviceType::NoDevice => "dummy".to_owned(),
    };
    wire::Opcode {
        name: row.name.to_owned(),
        operation: row.operation.into(),
        service_action: row.action.map(u32::from),
        cdb_bytes: row.cdb_bytes().into(),
        answerer: match row.answerer {
            Answerer::Card => "card".to_owned(),
            Answerer::Host(_) => "host".to_owned(),
        },
        device_types: row.types.iter().map(device_type).collect(),
        thin_only: row.is_thin_only(),
        alua_only: row.is_alua_only(),
        timeout_s: row.timeout_s,
    }
}

/// Serves the API on `listener` until `stop` is done, and finishes the calls under way then.
pub(crate) async fn serve(
    listener: UnixListener,
    engine: EngineLine,
    epoch: u64,
    refusals: Arc<Refusals>,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    tonic::transport::Server::builder()
        .add_service(AgentServer::new(Api { epoch, engine, refusals }))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await
}

/// A client of the agent at `path`.
pub async fn connect(
    path: &Path,
) -> Result<wire::agent_client::AgentClient<tonic::transport::Channel>, tonic::transport::Error> {
    let path = path.to_owned();
    // The authority is required and without meaning on a Unix socket.
    let channel = tonic::transport::Endpoint::from_static("http://agent.lunar")
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(path).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        }))
        .await?;
    Ok(wire::agent_client::AgentClient::new(channel))
}
